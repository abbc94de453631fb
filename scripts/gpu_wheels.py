"""The wheels that `make gpu` installs on a machine without a network: what it lacks beside torch, NumPy, pandas and others.

python scripts/gpu_wheels.py [--python-version 3.12]: fills wheels/ with the pins of requirements.txt for Linux on x86-64.
Meshes and textures of robots that no task needs whose data are made here are left out of gymnasium-robotics.
"""

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LACKING = (  # with what they import; pyopengl, which draws, is not needed
    "gymnasium", "farama-notifications", "gymnasium-robotics", "pettingzoo", "mujoco", "glfw", "minari",
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection",
)  # fmt: skip
UNUSED = re.compile(r"gymnasium_robotics/envs/assets/(adroit_hand|kitchen_franka|stls|textures)/")
GLIBC = (39, 36, 35, 34, 31, 28, 27, 24, 17)
MOST_MB = 60


def pins() -> dict[str, str]:
    """Name and version of each line of requirements.txt, without extras."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [re.match(r"([\w.-]+)(?:\[.*\])?==(\S+)", line) for line in lines]
    return {match[1].lower(): match[2] for match in found if match}


def slim(path: Path) -> None:
    """A wheel without what UNUSED matches, and without its lines in RECORD."""
    whole = path.with_suffix(".whole")
    path.rename(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            if UNUSED.match(item.filename):
                continue
            content = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                content = b"".join(line for line in content.splitlines(True) if not UNUSED.match(line.decode()))
            new.writestr(item, content, zipfile.ZIP_DEFLATED)
    whole.unlink()


def expected(path: Path) -> set[str]:
    """What a wheel needs always and the others do not bring."""
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        lines = wheel.read(name).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    names = {re.match(r"[\w.-]+", need)[0].lower().replace("_", "-") for need in needs if "extra ==" not in need}
    return names - set(LACKING)


def main() -> None:
    """Download, slim, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", default="3.12")
    parser.add_argument("--output", type=Path, default=ROOT / "wheels")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for old in given.output.glob("*.whl"):
        old.unlink()
    versions = pins()
    words = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", given.python_version]
    for minor in GLIBC:
        words += ["--platform", f"manylinux_2_{minor}_x86_64"]
    words += ["--platform", "manylinux2014_x86_64", "--disable-pip-version-check", "-q", "-d", str(given.output)]
    named = [f"{name}=={versions[name]}" for name in LACKING]
    if code := subprocess.run([sys.executable, "-m", "pip", "download", *words, *named]).returncode:
        sys.exit(code)
    for path in given.output.glob("gymnasium_robotics-*.whl"):
        slim(path)
    wheels = sorted(given.output.glob("*.whl"))
    for path in wheels:
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    size = sum(path.stat().st_size for path in wheels) / 1e6
    print(f"{size:6.2f} MB in {given.output}; there already: {', '.join(sorted(set().union(*map(expected, wheels))))}")
    if size > MOST_MB:
        sys.exit(f"more than {MOST_MB} MB")


if __name__ == "__main__":
    main()
