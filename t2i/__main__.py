"""`python -m t2i COMMAND` is the same as `t2i COMMAND`."""

from t2i.cli.main import main

if __name__ == "__main__":
    main()
