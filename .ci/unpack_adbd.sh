#!/usr/bin/env bash
# Android's own device daemon, which Debian has from trixie on, with the libraries it needs, into a folder of its own
# (27 MB); the system stays as it is. Packages come from the machine's own apt sources, with another suite.
# The daemon listens on every interface and asks nobody who he is, while the tests of adb run; without this folder
# they are skipped.
set -euo pipefail

suite=trixie
folder=${HETRL_ADBD:-$HOME/.cache/hetrl-ci/adbd}
if [ -x "$folder/usr/lib/android-sdk/platform-tools/adbd" ]; then exit 0; fi
if ! command -v apt-get dpkg >/dev/null; then
	echo "the tests of adb need Debian's packages, and this system has no apt" >&2
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
touch "$work/status"

. /etc/os-release
source=$(apt-get -o "Dir::State=$work/state" update --print-uris |
	sed -n "s#^'\([^']*\)/dists/$VERSION_CODENAME/InRelease'.*#\1#p" | head -n 1)
[ -n "$source" ] || { echo "no apt source of $VERSION_CODENAME was found" >&2; exit 1; }
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb $([ -f "$key" ] && echo "[signed-by=$key]") $source $suite main" >"$work/sources.list"

# An apt of its own that believes nothing is installed, so that all libraries come along.
own=(-o "Dir::State=$work/state" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
	-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
	-o "APT::Sandbox::User=$(id -un)" -q)
apt-get "${own[@]}" update
apt-get "${own[@]}" install -y --download-only --no-install-recommends adbd
for package in "$work"/cache/archives/*.deb; do
	dpkg -x "$package" "$work/root"
done
mkdir -p "$(dirname "$folder")"
rm -rf "$folder"
mv "$work/root" "$folder"
