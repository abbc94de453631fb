"""papermill, without the grammar of IRIs that jsonschema would compile at its start, longer than papermill takes itself."""

import sys

sys.modules["rfc3987_syntax"] = None  # jsonschema goes on without it

from papermill.cli import papermill  # noqa: E402

if __name__ == "__main__":
    papermill()
