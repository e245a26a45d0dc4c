"""`python -m mlm_pytorch` is `mlm`."""

from mlm_pytorch.cli import main

if __name__ == "__main__":
    main()
