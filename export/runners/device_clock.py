"""Sets the governor of a device's processors, and says what it was before: mobilenas holds it while it measures.

Usage: python device_clock.py /sys '{"*": "performance"}', or with what this printed, to set it back. Either all are set or
none. Needs Python 3.8 and its standard library.
"""

import glob
import json
import os
import sys

PATTERN = "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"


def read(path):
    with open(path) as file:
        return file.read().strip()


def write(path, value):
    with open(path, "w") as file:
        file.write(value)


def main():
    root, wanted = sys.argv[1], json.loads(sys.argv[2])
    paths = sorted(glob.glob(os.path.join(root, PATTERN)))
    if not paths:
        sys.exit("its clock cannot be set: it has no %s" % os.path.join(root, PATTERN))
    before = {}
    try:
        for path in paths:
            name = os.path.relpath(path, root)
            value = wanted.get(name, wanted.get("*"))
            if value is None or value == read(path):
                continue
            known = os.path.join(os.path.dirname(path), "scaling_available_governors")
            if os.path.exists(known) and value not in read(known).split():
                raise ValueError("%s has no governor %r; it has: %s" % (name.split("/")[3], value, read(known)))
            before[name] = read(path)
            write(path, value)
    except (OSError, ValueError) as error:
        for name, value in before.items():
            try:
                write(os.path.join(root, name), value)
            except OSError:
                pass
        sys.exit("its governor cannot be set: %s" % error)
    print(json.dumps(before))


if __name__ == "__main__":
    main()
