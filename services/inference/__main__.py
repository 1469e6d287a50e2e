"""`python -m services.inference`."""

from services.inference.main import main

if __name__ == "__main__":
    main()
