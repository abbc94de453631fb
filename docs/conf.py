"""The site of `make site`: README, the other Markdown pages and the notebooks with their stored outputs."""

from importlib.util import find_spec
from pathlib import Path

project, author, copyright = "The AEPO study", "the authors of the AEPO study", "MIT license"
html_title = project
extensions = ["myst_nb"]
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "policies/*/*.md",
    "docs/quick/*.ipynb",
    "notebooks/*.ipynb",
]
root_doc = "README"
html_theme = "furo"
html_copy_source = False
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# MathJax in one file beside the pages, so that formulas need no network.
html_static_path = [str(Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg.js")]
mathjax_path = "tex-svg.js"

ROOT = Path(__file__).parents[1]
PAGES = {
    "Pages": ["tasks", "methods", "results", "policies", "reproducing", "data", "speed", "glossary"],
    "Policies": [f"{path.parent.name}/README" for path in sorted((ROOT / "policies").glob("*/README.md"))],
    "Notebooks": [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))],
    "Executed at quick": [path.stem for path in sorted((ROOT / "docs" / "quick").glob("*.ipynb"))],
    "Project": ["CONTRIBUTING", "CHANGELOG"],
}
FOLDERS = {
    "Pages": "docs/",
    "Policies": "policies/",
    "Notebooks": "notebooks/",
    "Executed at quick": "docs/quick/",
    "Project": "",
}


def add_contents(app, docname, source):
    """README, as it stands in the repository, has no table of contents: here it gets a hidden one."""
    if docname == root_doc:
        for caption, names in PAGES.items():
            entries = "\n".join(FOLDERS[caption] + name for name in names)
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def write_index(app, exception):
    """The address of a folder shows its index.html."""
    if exception is None and app.builder.name == "html":
        front = Path(app.outdir) / f"{root_doc}.html"
        front.with_name("index.html").write_text(front.read_text("utf-8"), "utf-8")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("build-finished", write_index)
