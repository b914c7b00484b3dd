#!/bin/bash
# One run on a Slurm cluster, requeued until it is finished. Adapt the #SBATCH lines, then:
#   sbatch accelerate_configs/slurm.sh --recipe recipes/ade20k_linear.yaml --output.dir /shared/runs/ade20k
# Name output.dir: its marker and its results.json tell whether the job has to run again.
#SBATCH --job-name=vfm-segmentation
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@180
# ^ to the processes of the step, three minutes before the time is over.
set -u

arguments=("$@")
output=""
for i in "${!arguments[@]}"; do
    case "${arguments[$i]}" in
        --output.dir) output="${arguments[$((i + 1))]:-}" ;;
        --output.dir=*) output="${arguments[$i]#*=}" ;;
    esac
done
if [ -z "$output" ]; then
    echo "error: name the run folder with --output.dir FOLDER." >&2
    exit 2
fi

# The launcher passes on only the signals named here, and gives the processes so many seconds to save.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=150 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

# A preemption comes as SIGTERM to this script; srun forwards it, and the marker is read when the step has ended.
trap 'kill -TERM "$step" 2>/dev/null' TERM
rm -f "$output/preempted.json"  # of an earlier start: this one may fail before it takes it away
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus=${SLURM_GPUS_ON_NODE:-8}
# \$SLURM_NODEID differs from node to node, so it is left to each node's own shell.
srun --kill-on-bad-exit=1 bash -c "exec accelerate launch --quiet --config_file accelerate_configs/multi_node.yaml \
    --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * gpus)) --machine_rank \$SLURM_NODEID \
    --main_process_ip $head_node --main_process_port $((20000 + SLURM_JOB_ID % 20000)) \
    --rdzv_backend c10d train.py \"\$@\"" launch "$@" &
step=$!
wait "$step"
while kill -0 "$step" 2>/dev/null; do wait "$step"; done

# The launcher's status does not tell a run that was preempted from one that failed; the run folder does.
if [ -f "$output/results.json" ]; then
    exit 0
elif [ -f "$output/preempted.json" ]; then
    scontrol requeue "$SLURM_JOB_ID"
else
    echo "error: the run ended without a result and was not preempted: see above." >&2
    exit 1
fi
