"""`python -m appliance.cli`: the same as the command `keymoot`."""

from appliance.cli import main

if __name__ == "__main__":
    main()
