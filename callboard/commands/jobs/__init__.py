"""Commands that submit, show, change and delete jobs."""
