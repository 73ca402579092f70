"""The sweep: one elected process repairs stuck items and jobs, and deletes the rows of deleted and expired jobs."""
