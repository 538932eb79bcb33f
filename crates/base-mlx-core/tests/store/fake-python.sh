#!/bin/sh
# Stands in for `python3 -m pip download -d FOLDER PACKAGE==VERSION`: brings wheels from the folder `index` of the
# store's home, or fails with what lies there as PACKAGE==VERSION.fail.
set -e
arguments="$*"
while [ $# -gt 0 ]; do
    case $1 in
        -d) folder=$2; shift ;;
        *==*) package=$1 ;;
    esac
    shift
done
index=$folder/../../../../../index
echo "$arguments" >>"$index/calls"
if [ -e "$index/$package.fail" ]; then
    cat "$index/$package.fail" >&2
    exit 1
fi
cp "$index/$package.whl" "$folder/"
