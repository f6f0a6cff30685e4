#!/usr/bin/env bash
# An emulated 64-bit ARM for `make arm64`: Debian's Python, the engines' aarch64 wheels and a QEMU that runs them.
#
# Usage: arm64_root.sh FOLDER PYTHON. Nothing outside FOLDER is written, and root is not needed; PYTHON's pip fetches the
# wheels. FOLDER/python is the interpreter; QEMU_CPU in its environment says which processor it is to see.
set -euo pipefail

python=$(realpath --no-symlinks "$2")
for program in apt-get dpkg-deb; do
  command -v "$program" >/dev/null || { echo "no $program: only a Debian-like system can set up .arm64" >&2; exit 1; }
done
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)}
[ -n "$mirror" ] || { echo "apt knows no archive of Debian: set DEBIAN_MIRROR" >&2; exit 1; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keys" ] || { echo "no $keys: apt-get install debian-archive-keyring" >&2; exit 1; }

rm -rf "$1"
mkdir -p "$1"
cd "$1"
mkdir -p apt/lists/partial apt/archives/partial root qemu
touch apt/status

# QEMU 7.2, bookworm's own, crashes ONNX Runtime.
host=$(dpkg --print-architecture)
cat >apt/sources.list <<END
deb [arch=arm64 signed-by=$keys] $mirror bookworm main
deb [arch=$host signed-by=$keys] $mirror bookworm-backports main
END
cat >apt/apt.conf <<END
APT { Architecture "arm64"; Architectures { "arm64"; "$host"; }; Sandbox::User "root"; Install-Recommends "false"; }
Dir { State "$PWD/apt"; State::status "$PWD/apt/status"; Cache "$PWD/apt"; }
Dir::Etc { SourceList "$PWD/apt/sources.list"; SourceParts "/dev/null"; PreferencesParts "/dev/null"; }
Acquire::Languages "none";
END
export APT_CONFIG=$PWD/apt/apt.conf
apt-get -qq update
apt-get -qq --yes --download-only install python3.11 libgomp1 libstdc++6 >/dev/null
for package in apt/archives/*.deb; do
  dpkg-deb --extract "$package" root
done
(cd apt && apt-get -qq download "qemu-user:$host" >/dev/null)
dpkg-deb --extract apt/qemu-user_*.deb qemu
mv qemu/usr/bin/qemu-aarch64 .
rm -rf qemu apt

"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target packages --only-binary=:all: \
  --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
  numpy onnxruntime ncnn MNN

cat >python.new <<'END'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export PYTHONHOME="$here/root/usr" PYTHONPATH="$here/packages"
exec "$here/qemu-aarch64" -L "$here/root" "$here/root/usr/bin/python3.11" "$@"
END
chmod +x python.new
ORT_DISABLE_TELEMETRY=1 ./python.new -c 'import MNN, ncnn, numpy, onnxruntime, platform; assert platform.machine() == "aarch64"' >/dev/null
mv python.new python
