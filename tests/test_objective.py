"""An objective of one's own: its losses, what it is told, what it owns, and what checkpoints keep of it."""

import copy

import pytest
import torch

from patch_diffusion.denoise.objective import DenoisingObjective, Objective, denoising_loss
from patch_diffusion.files import read_tensors


class Towards(Objective):
    """The denoising loss, and the distance to a frozen copy of the model, which weighs more as the budget is spent."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.frozen = copy.deepcopy(denoiser).requires_grad_(False)
        self.spent, self.mean = [], torch.zeros(())

    def set_spent(self, spent):
        self.spent.append(spent)

    def forward(self, batch):
        loss = denoising_loss(self.denoiser, batch.clean, batch.conditions, batch.sigma, noise=batch.noise)
        with torch.no_grad():
            before = denoising_loss(self.frozen, batch.clean, batch.conditions, batch.sigma, noise=batch.noise)
            self.mean = 0.9 * self.mean + 0.1 * before.mean()
        return loss + self.mean + self.spent[-1] * (loss - before).square()

    def state(self):
        return {"mean": self.mean}

    def restore(self, state):
        self.mean = state["mean"]


def test_the_usual_one_is_the_denoising_loss(make_trainer):
    assert type(make_trainer().state.objective) is DenoisingObjective


@pytest.mark.slow
def test_it_is_told_the_spent_part_and_keeps_its_state(make_trainer, monkeypatch):
    # Threads would each move the mean, in any order.
    monkeypatch.setattr("patch_diffusion.denoise.threads.can_share", lambda model: False)
    whole = make_trainer("whole", objective=Towards)
    whole.fit(steps=6)
    assert whole.state.objective.spent == [step / 6 for step in range(6)]
    stopped = make_trainer("stopped", objective=Towards)
    with stopped.in_laps(steps=6) as train_until:
        train_until(0.5)
        stopped.save()
    tensors = read_tensors(stopped.run.checkpoint(3) / "objective.safetensors")
    assert torch.equal(tensors["mean"], stopped.state.objective.mean) and tensors["mean"] > 0
    continued = make_trainer("stopped", objective=Towards)
    continued.fit(steps=6)
    assert torch.equal(continued.state.objective.mean, whole.state.objective.mean)
    for name, tensor in whole.state.network.state_dict().items():
        assert torch.equal(tensor, continued.state.network.state_dict()[name]), name


@pytest.mark.slow
def test_its_frozen_modules_are_not_trained(make_trainer):
    trainer = make_trainer(objective=Towards)
    before = copy.deepcopy(trainer.state.objective.frozen.state_dict())
    trainer.fit(steps=2)
    after = trainer.state.objective.frozen.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = {id(each) for group in trainer.state.optimizer.param_groups for each in group["params"]}
    assert trained == {id(each) for each in trainer.state.network.parameters()}
