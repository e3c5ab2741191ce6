# shellcheck shell=bash
# moto, which plays AWS for the tests of the EventBridge sink: a Python environment of its own, in .cache/moto.
#
# pip resolves nothing: moto/requirements.txt pins every package, each with the sums it may have. To raise the version,
# change it in moto/requirements.in and run, in an environment with pip-tools and from the oldest Python that is to do:
#
#     pip-compile --generate-hashes --strip-extras --no-emit-options --output-file requirements.txt requirements.in
#
# Needs common.sh.

moto_folder() { printf '%s' "$ROOT/.cache/moto"; }

# moto_recipe: what its folder is made by; another recipe makes another folder.
moto_recipe() { sha256sum <"$ROOT/scripts/lib/moto/requirements.txt"; }

moto_is_there() {
    [[ $(cat -- "$(moto_folder)/recipe" 2>/dev/null) == "$(moto_recipe)" ]]
}

# python_for_moto: whether there is a Python that can make environments.
python_for_moto() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

# eventbridge_features: the cargo feature, or nothing and why.
# shellcheck disable=SC2120 # arguments are for some
eventbridge_features() {
    if [[ ${1:-} == --tests ]] && ! moto_is_there; then
        say 'left out: the EventBridge sink (scripts/setup could not fetch moto)' >&2
    else
        printf eventbridge
    fi
}

# install_moto: fills its folder, unless that is complete already.
install_moto() {
    local folder began=$EPOCHREALTIME
    folder=$(moto_folder)
    ! moto_is_there || return 0
    type -P flock >/dev/null || die 'fetching moto needs flock'
    python_for_moto || die 'moto needs Python 3.10 or later with venv (the package python3-venv)'
    umask 022
    mkdir -p "$ROOT/.cache"
    (
        flock 9
        # Somebody else may have made it while this waited.
        ! moto_is_there || exit 0
        say 'fetching moto (once; about 140 MB when it is unpacked)'
        # Not moved afterwards: its programs name the folder.
        rm -rf -- "$folder"
        python3 -m venv "$folder" >&2 || die "cannot make a Python environment in $folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
            --requirement "$ROOT/scripts/lib/moto/requirements.txt" </dev/null >&2 || die 'pip could not fetch moto'
        moto_recipe >"$folder/recipe"
        say "ready in $(seconds_since "$began"): moto $(moto_version), in ${folder#"$ROOT/"}"
    ) 9>"$ROOT/.cache/.moto.lock"
}

moto_version() { sed -n "s/^moto\\[.*==//p" "$ROOT/scripts/lib/moto/requirements.in"; }

# start_moto: AWS in memory; sets AWS_ENDPOINT_URL. Needs servers.sh.
start_moto() {
    local log=$WORK/moto.log
    start moto KILL "$log" env PYTHONUNBUFFERED=1 \
        "$(moto_folder)/bin/python" "$ROOT/scripts/lib/moto/server.py" -H 127.0.0.1 -p 0
    wait_until 60 moto_decided "$LAST_PID" "$log"
    AWS_ENDPOINT_URL=$(moto_url "$log")
    [[ -n $AWS_ENDPOINT_URL ]] || {
        log_tail "$log"
        die 'moto did not start'
    }
}

# It picks a free port and says which.
moto_url() { sed -n 's/.*Running on \(http:[^ ]*[0-9]\).*/\1/p' "$1" | head -n 1; }
moto_decided() { ! running "$1" || [[ -n $(moto_url "$2") ]]; }
