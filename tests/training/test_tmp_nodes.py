import os, subprocess, sys, yaml
from tests.training.test_launch import ROOT
def test_nodes(unet_config, tmp_path):
    path = tmp_path / "c.yaml"; path.write_text(yaml.safe_dump(unet_config(tmp_path / "run", max_steps=2)))
    env = os.environ | {"TQDM_DISABLE": "1"}
    for kind in ("torchrun", "accelerate"):
        ps = []
        for rank in "01":
            cmd = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", rank, "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:29517"] if kind == "torchrun" else [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "configs/accelerate/ddp.yaml", "--num_machines", "2", "--num_processes", "2", "--machine_rank", rank, "--main_process_ip", "localhost", "--main_process_port", "29518"]
            ps.append(subprocess.Popen(cmd + ["-m", "latentdiff", "train", str(path), "--set", f"run.output={tmp_path/kind}"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
        errs = [p.communicate()[1] for p in ps]
        print(kind, [p.returncode for p in ps], len(list(tmp_path.glob(f"{kind}/checkpoints/*/random_states_*"))))
        if any(p.returncode for p in ps): print(errs[0][-2500:])
