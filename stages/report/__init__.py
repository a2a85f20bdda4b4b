"""Room of the report: everything that the pipeline found out, on one page."""
