"""The only place that speaks SQL. It imports nothing of ours; read `states`, then `rows`, then `queries/record.sql`.

`writes` are for threads and take a connection; `reads` describe queries that a sync or an async connection can run.
"""
