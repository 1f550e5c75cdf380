"""The table of records, with its indices."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TABLE = "mlserve_records"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        _TABLE,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("code", sa.Text),
        sa.Column("is_stream", sa.Boolean, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("bytes_in", sa.BigInteger, nullable=False),
        sa.Column("bytes_out", sa.BigInteger, nullable=False),
        sa.Column("total_ms", sa.Double, nullable=False),
        sa.Column("queue_ms", sa.Double, nullable=False),
        sa.Column("preprocess_ms", sa.Double, nullable=False),
        sa.Column("infer_ms", sa.Double, nullable=False),
        sa.Column("postprocess_ms", sa.Double, nullable=False),
        sa.Column("batch_size", sa.Integer, nullable=False),
        sa.Column("chunks", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("annotations", sa.Text),
        sa.Column("request", sa.Text),
        sa.Column("response", sa.Text),
    )
    op.create_index(f"{_TABLE}_time", _TABLE, ["time"])
    op.create_index(f"{_TABLE}_model", _TABLE, ["model", "version", "time"])
    op.create_index(f"{_TABLE}_request", _TABLE, ["request_id"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table(_TABLE)
