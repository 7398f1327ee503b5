"""python -m hubquant"""

from hubquant.cli import main

if __name__ == "__main__":
    main()
