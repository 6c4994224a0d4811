"""`python -m lasagna` is the command `lasagna`, for programs that start modules (`torchrun -m lasagna train ...`)."""

from lasagna.commands.cli import main

if __name__ == "__main__":
    main(prog_name="lasagna")
