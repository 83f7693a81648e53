import os, subprocess, sys, yaml, pytest
from tests.training.test_launch import logged, ROOT
from tests.training.small_runs import losses, run
from latentdiff import LatentDiffusionPipeline
@pytest.mark.parametrize("prec", ["no"])
def test_ds(unet_config, tmp_path, prec):
    def config(name, batch, steps):
        made = unet_config(tmp_path / name, max_steps=steps, lr_schedule="constant")
        made["data"]["batch_size"] = batch
        made["run"] |= {"gradient_accumulation_steps": 2, "sample_every": 3, "checkpoint_every": 3}
        return made
    one = run(config("one", 4, 6))
    for steps, words in ((3, ()), (6, ("--resume",))):
        path = tmp_path / "c.yaml"; path.write_text(yaml.safe_dump(config("ds", 2, steps)))
        env = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": f"/work/scratch/ds:{ROOT}", "DS_ACCELERATOR": "cpu",
          "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
        cmd = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "/work/scratch/dstest/go.py", "train", str(path), *words]
        done = subprocess.run(cmd, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
    two = logged(tmp_path / "ds")
    print(losses(one), losses(two)); print([l for l in two if "held_out_loss" in l], [l for l in one if "held_out_loss" in l])
    print(sorted(p.name for p in (tmp_path / "ds/checkpoints/step-00000006").rglob("*")))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    LatentDiffusionPipeline.from_pretrained(tmp_path / "ds" / "model")("a red disc", num_inference_steps=2, height=16, width=16)
