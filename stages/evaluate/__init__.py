"""Room of the evaluation stage: a model and the validation set become metrics and samples."""
