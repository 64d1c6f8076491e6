#!/bin/bash
# Run by `scripts/nest run --icount tests/exchange-instructions.sh`: how many instructions the machine executes while a guest
# stands still for an exchange. There a CPU instruction takes 2 ns of the only clock, so a microsecond is 500 of them.
set -e
xl create -q /etc/xen/stubdom/guests/pvh-256.cfg
ask-witness pvh-256 ready
stubctl attach pvh-256
# exchange WHAT [--split] MFN...: prints the instructions of each pause, and of the stub's swap in it
exchange() {
    local what=$1
    shift
    stubctl offline --json "$@" |
        sed -n 's/.*"pause_us":\([0-9]*\).*"swap_us":\([0-9]*\).*/\1 \2/p' |
        awk -v what="$what" '{ printf "%s: %.0f instructions in the pause, %.0f of them in the swap\n", what, $1 * 500, $2 * 500 }'
}
mapfile -t superpages <<<"$(stubctl locate pvh-256 0x4205 0x4605 0x4a05 0x4e05 0x5205)"
mapfile -t pages <<<"$(stubctl locate pvh-256 0x6205 0x6605 0x6a05 0x6e05 0x7205)"
exchange superpage "${superpages[@]}"
exchange "page alone" --split "${pages[@]}"
ask-witness pvh-256 verify
