"""The two-player game: one update of the generator, then one of the student, per step."""

import torch

from adadfq_jax.reference import losses

PHASES = ("calibrate", "warmup", "play")
PROCEDURES = ("authors", "lean")
METHODS = ("adadfq", "gdfq")


class Game:
    """Teacher P, student Q, generator G and both optimizers; defaults are ResNet-20's on CIFAR.

    ``method`` "gdfq" has other losses, with fixed constants, ``temperature`` and ``kl_reduction``.
    ``procedure`` "authors" does the work that the released program does. "lean" computes the same
    numbers from one forward pass of Q, without unused gradients, with sub-pixel convolutions,
    channels-last tensors and fused kernels. Both change settings of the networks that they are
    given (which parameters require gradients, ``generator.subpixel``, memory format).
    """

    def __init__(
        self,
        teacher,
        student,
        generator,
        *,
        procedure="lean",
        method="adadfq",
        kl_reduction="elements",
        lr_g=1e-3,
        betas=(0.5, 0.999),
        lr_q=1e-4,
        momentum=0.9,
        weight_decay=1e-4,
        temperature=20.0,
        alpha_ds=0.2,
        alpha_as=0.1,
        lambda_l=0.1,
        lambda_u=0.8,
        beta=1.0,
        gamma=1.0,
    ):
        if procedure not in PROCEDURES:
            raise ValueError(f"procedure is {procedure!r}, not one of {PROCEDURES}")
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, not one of {METHODS}")
        self.teacher, self.student, self.generator = teacher, student, generator
        self.lean = procedure == "lean"
        self.gdfq, self.kl_reduction = method == "gdfq", kl_reduction
        self.temperature = temperature
        self.alpha_ds, self.alpha_as = alpha_ds, alpha_as
        self.lambda_l, self.lambda_u = lambda_l, lambda_u
        self.beta, self.gamma = beta, gamma
        generator.subpixel = self.lean
        teacher.requires_grad_(not self.lean)
        if self.lean:
            for network in (teacher, student, generator):
                network.to(memory_format=torch.channels_last)
        fused = self.lean or None  # None is PyTorch's default
        self.generator_optimizer = torch.optim.Adam(
            generator.parameters(), lr=lr_g, betas=betas, fused=fused
        )
        self.student_optimizer = torch.optim.SGD(
            student.parameters(),
            lr=lr_q,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=True,
            fused=fused,
        )

    def step(self, z, y, phase):
        """Take one step with z (B, 100) and labels y (B,); ``phase`` is one of PHASES.

        Returns, by name, tensors from before the updates: scalars l_bns, l_g, l_q and, except for
        GDFQ, l_ds, l_as, l_bal, l_margin; images (B, 3, H, W); logits_teacher and logits_student
        (B, C); entropy, which is H', (B,).
        """
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, not one of {PHASES}")
        self.student.set_calibrating(phase == "calibrate")
        step = self._lean_step if self.lean else self._authors_step
        return {name: value.detach() for name, value in step(z, y, phase == "play").items()}

    def _generator_losses(self, z_p, z_q, y, statistics):
        h = losses.relative_entropy(z_p, z_q)
        if self.gdfq:
            l_bns = losses.statistics_loss(statistics, self.teacher.stored_statistics())
            l_g = losses.gdfq_generator_loss(z_p, y, l_bns)
            return {"l_bns": l_bns, "l_g": l_g, "entropy": h}
        l_ds = losses.disagreement_loss(z_p, z_q, y)
        l_as = losses.agreement_loss(z_p, z_q, y)
        l_bal = self.alpha_ds * l_ds + self.alpha_as * l_as
        l_margin = losses.margin_loss(h, self.lambda_l, self.lambda_u)
        l_bns = losses.statistics_loss(statistics, self.teacher.stored_statistics())
        l_g = losses.generator_loss(l_margin, l_bal, l_bns, self.beta, self.gamma)
        return {
            "l_ds": l_ds,
            "l_as": l_as,
            "l_bal": l_bal,
            "l_margin": l_margin,
            "l_bns": l_bns,
            "l_g": l_g,
            "entropy": h,
        }

    def _student_loss(self, z_p, z_q, y):
        if self.gdfq:
            return losses.gdfq_student_loss(z_p, z_q, y, self.temperature, self.kl_reduction)
        return losses.student_loss(z_p, z_q, self.temperature)

    def _authors_step(self, z, y, play):
        images = self.generator(z, y)
        z_p, statistics = self.teacher.with_statistics(images)
        z_q = self.student(images)
        result = self._generator_losses(z_p, z_q, y, statistics)
        self.generator_optimizer.zero_grad()
        result["l_g"].backward()
        self.generator_optimizer.step()
        # That backward pass also filled the gradients of both classifiers' parameters.
        self.teacher.zero_grad()
        self.student_optimizer.zero_grad()
        # Q is run again on the same images; they must not count twice in the ranges.
        self.student.set_calibrating(False)
        l_q = self._student_loss(z_p, self.student(images.detach()), y)
        if play:
            l_q.backward()
            self.student_optimizer.step()
        return result | {"l_q": l_q, "images": images, "logits_teacher": z_p, "logits_student": z_q}

    def _lean_step(self, z, y, play):
        images = self.generator(z, y)
        z_p, statistics = self.teacher.with_statistics(images, fused=True)
        z_q = self.student(images)
        result = self._generator_losses(z_p, z_q, y, statistics)
        l_q = self._student_loss(z_p, z_q, y)
        # Two cotangents go back through the same forward pass of Q. Each call visits only what
        # lies between its loss and its parameters: first no weight of P or Q, then no image.
        # (backward, not autograd.grad: it lays a gradient out in memory like its parameter, which
        # PyTorch's fused optimizers take for granted without a check.)
        self.generator_optimizer.zero_grad()
        result["l_g"].backward(inputs=list(self.generator.parameters()), retain_graph=play)
        if play:
            self.student_optimizer.zero_grad()
            l_q.backward(inputs=list(self.student.parameters()))
            self.student_optimizer.step()
        self.generator_optimizer.step()
        return result | {"l_q": l_q, "images": images, "logits_teacher": z_p, "logits_student": z_q}
