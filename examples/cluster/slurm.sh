#!/usr/bin/env bash
# Slurm: sbatch examples/cluster/slurm.sh train ppo --config my.yaml
# One Ray node on each of the job's nodes, then the run on the first. Start it in a checkout that
# all nodes see, with its .venv installed (`make install`).
#SBATCH --job-name=quartet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=quartet-%j.log
set -euo pipefail

[ "$#" -gt 0 ] || { echo "usage: sbatch $0 train ppo --config my.yaml" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD" RAY_USAGE_STATS_ENABLED=0

# One token for this job's cluster, in a file that only its owner reads, gone with the job.
umask 077
RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-${SLURM_JOB_ID:-$$}"
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}")
port=$((20000 + ${SLURM_JOB_ID:-$$} % 10000))
on() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" "${@:2}"; }

address="$(on "${nodes[0]}" hostname --ip-address | awk '{print $1}')"
on "${nodes[0]}" ray start --head --block --node-ip-address="$address" --port="$port" \
    --include-dashboard=false &
for node in "${nodes[@]:1}"; do
    on "$node" ray start --block --address="$address:$port" &
done

# Until every node has joined: a run that starts earlier would see too few GPUs.
export RAY_ADDRESS="$address:$port"
for _ in $(seq 60); do
    joined="$(on "${nodes[0]}" python -c 'import ray; ray.init(logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' 2>/dev/null || echo 0)"
    [ "$joined" -eq "${#nodes[@]}" ] && break
    sleep 5
done
[ "$joined" -eq "${#nodes[@]}" ] || { echo "$joined of ${#nodes[@]} nodes joined" >&2; exit 1; }

# Its exit code is the job's: 0 done, 1 stopped or failed, 2 bad input.
code=0
on "${nodes[0]}" env RAY_ADDRESS="$RAY_ADDRESS" python -m cluster.cli "$@" || code=$?
kill "$(jobs -p | head -n 1)" 2>/dev/null || true
exit "$code"
