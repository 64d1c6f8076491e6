#!/bin/bash
# Run by `scripts/nest run --icount tests/exchange-instructions.sh [GUEST]`: how many instructions the machine executes while a
# guest (pvh-256) stands still for an exchange. There a CPU instruction takes 2 ns of the only clock, so a microsecond is 500
# of them.
set -e
guest=${1:-pvh-256}
xl create -q "/etc/xen/stubdom/guests/$guest.cfg"
ask-witness "$guest" ready
stubctl attach "$guest"
# exchange WHAT [--split] MFN...: prints the instructions of each pause, and of the stub's swap in it
exchange() {
    local what=$1
    shift
    stubctl offline --json "$@" |
        sed -n 's/.*"pause_us":\([0-9]*\).*"swap_us":\([0-9]*\).*/\1 \2/p' |
        awk -v what="$what" '{ printf "%s: %.0f instructions in the pause, %.0f of them in the swap\n", what, $1 * 500, $2 * 500 }'
}
mapfile -t superpages <<<"$(stubctl locate "$guest" 0x4205 0x4605 0x4a05 0x4e05 0x5205)"
mapfile -t pages <<<"$(stubctl locate "$guest" 0x6205 0x6605 0x6a05 0x6e05 0x7205)"
exchange superpage "${superpages[@]}"
exchange "page alone" --split "${pages[@]}"
ask-witness "$guest" verify
