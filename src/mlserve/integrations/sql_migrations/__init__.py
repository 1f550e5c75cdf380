"""How the tables of `SqlSink` came to be, step by step; Alembic runs what a database lacks."""
