# Sourced by the other scripts: where things are, and how they speak.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Tools that are no packages of the system (kubectl, cargo-deny, rust-src) are kept here, outside the clone.
CACHE=${PODWIRE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/podwire}
export PATH="$CACHE/bin:$HOME/.cargo/bin:$PATH"
# What a user's shell says of their own labs is not meant for these.
unset PODWIRE_LAB_NAME PODWIRE_STATE KUBECONFIG
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*" >&2; }
# die THING CAUSE MEND
die() { printf 'error: %s: %s; %s\n' "$1" "$2" "$3" >&2; exit 1; }
