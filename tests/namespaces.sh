#!/usr/bin/env bash
# Runs the tests that make bridges and network namespaces, in a network and with mounts of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v bridge >/dev/null || ! unshare --net --mount true 2>/dev/null; then
    echo "skipped: needs iproute2 and the right to make network namespaces (root)"
    echo "0 passed, 0 failed, 1 skipped"
    exit
fi
tests=(no_stub_draws_to_itself_what_is_for_another without_ipv6_there_are_words_before_a_stub_starts)
if command -v nft >/dev/null; then
    tests+=(the_packet_filter_lets_a_stream_pass_and_no_service_of_dom0)
else
    echo "skipped: the packet filter needs nft (package nftables)"
    echo "0 passed, 0 failed, 1 skipped"
fi
for test in "${tests[@]}"; do
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --net --mount bash -ec 'mount -t sysfs none /sys; mount -t tmpfs none /run; ip link set lo up; exec "$@"' \
        namespaces cargo test --quiet -p stubctl "net::tests::$test" -- --ignored --exact
done
