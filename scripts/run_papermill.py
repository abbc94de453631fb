"""papermill, without the grammar of IRIs that jsonschema would compile at its start: it takes longer than papermill itself."""

import sys

sys.modules["rfc3987_syntax"] = None  # jsonschema goes on without it

from papermill.cli import papermill  # noqa: E402

if __name__ == "__main__":
    papermill()
