"""`python -m training …`, and so `torchrun -m training …`: the same as `sit-deploy train …`."""

import sys

from sit_deploy.cli import main

main(["train", *sys.argv[1:]])
