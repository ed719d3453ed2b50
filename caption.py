"""Caption pictures from the command line: `python caption.py PATH... [--overlay DIR]`."""

from captioner.cli.main import caption_main

if __name__ == "__main__":
    caption_main()
