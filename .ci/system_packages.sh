#!/usr/bin/env bash
# What the tests of real devices need from the system, on Debian and Ubuntu: OpenSSH's client and server, adb, Mesa's
# Vulkan device in software. Installs what is missing; without root it says what that is.
set -euo pipefail

declare -A programs=([openssh-client]=ssh [openssh-server]=sshd [adb]=adb)
export PATH="$PATH:/usr/sbin"
missing=()
for package in "${!programs[@]}"; do
	command -v "${programs[$package]}" >/dev/null || missing+=("$package")
done
compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' >/dev/null || missing+=(mesa-vulkan-drivers)

if [ "${#missing[@]}" -eq 0 ]; then exit 0; fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing system packages: ${missing[*]}; install them: sudo apt-get install ${missing[*]}" >&2
	exit 0
fi
# RUNLEVEL=1 keeps a package's service from starting (in containers): the tests run an sshd of their own.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
