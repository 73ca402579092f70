"""The only package with SQL. It imports no other of our packages. Read `states`, then `rows`, then
`queries/record.sql`.

`writes` are for threads and take a connection. `reads` describe queries that a sync or an async connection can run.
"""
