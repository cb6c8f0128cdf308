"""file -> record: readers of every row format and public set."""
