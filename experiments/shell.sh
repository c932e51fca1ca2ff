#!/usr/bin/env bash
# Pi by throwing darts: an experiment that is not Python. Metrics go through repro-log, results to $REPRO_OUTPUTS.
set -euo pipefail

# A number of the configuration by its name. That is as far as grep goes: an image with jq can ask for
# `jq .params.rounds "$REPRO_CONFIG"`, and understands all of it.
setting() {
    grep -oE "\"$1\": *[0-9]+" "$REPRO_CONFIG" | head -n 1 | grep -oE '[0-9]+$'
}

rounds=$(setting rounds)
darts=$(setting darts)
RANDOM=$(setting seed) # bash's generator: the same seed throws the same darts

hits=0
for ((round = 1; round <= rounds; round++)); do
    for ((dart = 0; dart < darts; dart++)); do
        x=$RANDOM y=$RANDOM
        ((x * x + y * y > 32767 * 32767)) || ((++hits))
    done
    thrown=$((round * darts))
    millionths=$((4000000 * hits / thrown))
    pi=$((millionths / 1000000)).$(printf '%06d' $((millionths % 1000000)))
    repro-log step="$round" pi="$pi"
    echo "after $thrown darts: $pi"
done

echo "$pi" >"$REPRO_OUTPUTS/pi.txt"
