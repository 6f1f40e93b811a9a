"""`python -m funcvae`: the same as the `funcvae` command."""

from funcvae.cli import main

main()
