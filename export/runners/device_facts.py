"""Prints what the device that this file was copied to is, as one JSON object.

Usage: python device_facts.py

Needs Python 3.8 and nothing else. What a system does not tell stays empty.
"""

import glob
import json
import os
import platform
import subprocess
import sys

ENGINES = ("onnxruntime", "ncnn", "MNN", "tensorrt", "tensorrt_rtx")
ACCELERATORS = {
    "/dev/nvidia0": "NVIDIA GPU",
    "/dev/nvhost-gpu": "NVIDIA Tegra GPU",
    "/dev/kgsl-3d0": "Qualcomm Adreno GPU",
    "/dev/mali0": "Arm Mali GPU",
    "/dev/apex_0": "Coral Edge TPU",
    "/dev/hailo0": "Hailo",
    "/dev/galcore": "Vivante NPU or GPU",
}


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read().replace("\0", "").strip()
    except OSError:
        return ""


def printed(*argv):
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def cpu_model():
    for key in ("model name", "Hardware"):
        for line in read("/proc/cpuinfo").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or "unknown"


def soc():
    for found in (
        printed("getprop", "ro.soc.model"),
        printed("getprop", "ro.board.platform"),
        read("/proc/device-tree/model"),
        read("/sys/class/dmi/id/product_name"),
    ):
        if found:
            return found
    return None


def clusters():
    """Cores that share a highest clock, the slowest first; empty where clocks are not told."""
    counts = {}
    for path in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq"):
        khz = read(path)
        if khz.isdigit():
            counts[int(khz) / 1000.0] = counts.get(int(khz) / 1000.0, 0) + 1
    return [{"cores": counts[mhz], "highest_mhz": mhz} for mhz in sorted(counts)]


def memory_mib():
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return None


def accelerators():
    found = [line.split(" (UUID")[0] for line in printed("nvidia-smi", "-L").splitlines()]
    names = [name for path, name in ACCELERATORS.items() if os.path.exists(path)]
    return found or names


def engines():
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ENGINES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def main():
    facts = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count() or 1,
        "soc": soc(),
        "clusters": clusters(),
        "memory_mib": memory_mib(),
        "governors": sorted({read(p) for p in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}),
        "thermal_zones": sorted({read(p) for p in glob.glob("/sys/class/thermal/thermal_zone*/type")}),
        "accelerators": accelerators(),
        "python": platform.python_version(),
        "engines": engines(),
    }
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
