"""`python -m tunewise`, and with it `torchrun -m tunewise` and `accelerate launch -m tunewise`."""

from tunewise.cli.main import run

if __name__ == "__main__":
    run()
