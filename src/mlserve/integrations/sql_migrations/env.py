"""What Alembic runs around its steps: they use the connection that `SqlSink` has opened."""

from alembic import context

from mlserve.integrations.sql import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
