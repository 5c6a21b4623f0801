"""Adds to wheels the licences of the libraries that were bundled with them: python .ci/licenses.py FOLDER

auditwheel, delocate and delvewheel copy OpenMP's library into a wheel without its licence.
"""

import base64
import hashlib
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath

TEXTS = Path(__file__).with_name("licenses")
EXPRESSIONS = {
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libomp": "Apache-2.0 WITH LLVM-exception",
}
LIBRARY = re.compile(r"([a-z]+).*\.(so|dylib|dll)\b")


def main(folder: str) -> None:
    for wheel in Path(folder).glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        libraries = bundled(files)
        add_licenses(files, libraries)
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, bundles {', '.join(libraries) or 'nothing'}")


def bundled(names: dict[str, bytes]) -> list[str]:
    """Return the names of the libraries in a wheel, without versions. Exits where no licence is known."""
    libraries = {found[1] for name in names if (found := LIBRARY.match(PurePosixPath(name).name))}
    if unknown := libraries - EXPRESSIONS.keys():
        sys.exit(f"{', '.join(sorted(unknown))}: bundled, but the licence is not in {TEXTS}")
    return sorted(libraries)


def add_licenses(files: dict[str, bytes], libraries: list[str]) -> None:
    """Add licence texts to a wheel's files, and update its METADATA and RECORD."""
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    info = record.removesuffix("/RECORD")
    changed = {f"{info}/licenses/{library}.txt": (TEXTS / f"{library}.txt").read_bytes() for library in libraries}
    head, blank, description = files[f"{info}/METADATA"].partition(b"\n\n")
    lines = head.decode().splitlines()
    for library in libraries:
        if f"License-File: {library}.txt" not in lines:
            at = next(number for number, line in enumerate(lines) if line.startswith("License-Expression:"))
            lines[at] += f" AND {EXPRESSIONS[library]}"
            lines.append(f"License-File: {library}.txt")
    changed[f"{info}/METADATA"] = "\n".join(lines).encode() + blank + description
    files |= changed
    rows = [row for row in files[record].decode().splitlines() if row.split(",")[0] not in changed]
    for name, content in changed.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    files[record] = "\n".join([*rows, ""]).encode()


if __name__ == "__main__":
    main(*sys.argv[1:])
