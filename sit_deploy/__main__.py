"""`python -m sit_deploy` is `sit-deploy`."""

from sit_deploy.cli import main

main()
