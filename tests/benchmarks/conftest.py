"""What benchmarks are tried on."""

from tests.sit_deploy.conftest import nano_fp32

__all__ = ["nano_fp32"]  # fixtures
