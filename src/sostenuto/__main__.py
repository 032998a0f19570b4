"""`python -m sostenuto` is the command `sostenuto`."""

from sostenuto.cli.main import main

if __name__ == "__main__":
    main()
