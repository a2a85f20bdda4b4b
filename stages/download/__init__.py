"""Room of the download stage: a source of rows becomes conversations, split and counted."""
