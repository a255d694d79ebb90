"""Makes the wheel of mergeql-sqlite: arguments are the extension, the version and the folder for the wheel.

A wheel is a zip file (PEP 427): the package, and three files that describe it. The extension needs no particular Python.
"""

import base64
import hashlib
import os
import re
import sys
import sysconfig
import zipfile

library, version, folder = sys.argv[1:]
here = os.path.dirname(os.path.abspath(__file__))
platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
# On Linux the tag says which C library is needed (PEP 600): package indexes take no other.
needed = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", open(library, "rb").read())]
if platform.startswith("linux_") and needed:
    platform = platform.replace("linux", f"manylinux_2_{max(needed)}")
tag = f"py3-none-{platform}"
about = f"mergeql_sqlite-{version}.dist-info"
files = {
    "mergeql_sqlite/__init__.py": open(os.path.join(here, "mergeql_sqlite", "__init__.py"), "rb").read(),
    f"mergeql_sqlite/{os.path.basename(library)}": open(library, "rb").read(),
    f"{about}/METADATA": f"Metadata-Version: 2.1\nName: mergeql-sqlite\nVersion: {version}\nSummary: MergeQL in SQLite\nLicense: Apache-2.0\n".encode(),
    f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: mergeql\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
}
record = "".join(
    f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n" for name, data in files.items()
)
files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
path = os.path.join(folder, f"mergeql_sqlite-{version}-{tag}.whl")
with zipfile.ZipFile(path + ".new", "w", zipfile.ZIP_DEFLATED) as wheel:
    for name, data in files.items():
        wheel.writestr(name, data)
os.replace(path + ".new", path)
print(path)
