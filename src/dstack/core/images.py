"""The images of jobs whose configuration names none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """Complete references, as Docker takes them."""

    base: str = "dstackai/base:0.16-base-ubuntu24.04"
    nvcc: str = "dstackai/base:0.16-devel-ubuntu24.04"
    """Instead of `base` with `nvcc: true`."""
    docker: str = "dstackai/dind"
    """With `docker: true`; it has `start-dockerd`."""

    @classmethod
    def of(cls, repository: str, version: str, ubuntu: str, docker: str) -> Images:
        """`base` and `nvcc` are tags of one repository, made of two versions."""
        return cls(
            base=f"{repository}:{version}-base-ubuntu{ubuntu}",
            nvcc=f"{repository}:{version}-devel-ubuntu{ubuntu}",
            docker=docker,
        )

    def is_default(self, image: str) -> bool:
        """Whether a job spec with this image asked for none: such a job may as well be a process on its host."""
        return image in (self.base, self.nvcc)
