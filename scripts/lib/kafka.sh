# shellcheck shell=bash
# Apache Kafka for the tests: its published jars, in .cache/kafka, to run on the installed Java.
#
# Maven resolves them from where this system is set up to get them (Maven Central, or a mirror in
# its settings), into a repository of its own that is removed again. Whatever the way, each jar must have
# the sum in kafka/jars.sha512. To renew that list after a change of version in kafka/pom.xml: remove it and run
# scripts/setup, which then writes it; look at the difference before you commit it.
#
# Needs common.sh.

kafka_folder() { printf '%s' "$ROOT/.cache/kafka"; }

# java_for_kafka: Kafka 4 needs Java 17.
java_for_kafka() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    ((${version:-0} >= 17))
}

# kafka_builds: whether everything is here that the sink is built with: librdkafka is made from its source and
# linked to the system's OpenSSL.
kafka_builds() {
    type -P c++ make pkg-config >/dev/null && pkg-config --exists openssl 2>/dev/null
}

# kafka_features: the cargo feature, or nothing and why.
# shellcheck disable=SC2120 # arguments are for some
kafka_features() {
    if ! kafka_builds; then
        say 'left out: the Kafka sink (it needs compilers for C and C++, make, pkg-config, libssl-dev)' >&2
    elif [[ ${1:-} == --tests && ! -e $(kafka_folder)/recipe ]]; then
        say 'left out: the Kafka sink (scripts/setup could not fetch Apache Kafka)' >&2
    else
        printf kafka
    fi
}

# install_kafka: fills its folder, unless that is complete already.
install_kafka() {
    local folder recipe began=$EPOCHREALTIME lib=$ROOT/scripts/lib
    folder=$(kafka_folder)
    # What the folder was made by: another recipe makes another folder.
    recipe=$(cat "$lib/kafka/"* | sha256sum)
    if [[ $(cat -- "$folder/recipe" 2>/dev/null) == "$recipe" ]]; then
        return 0
    fi
    type -P mvn flock >/dev/null || die 'fetching Kafka needs mvn (the package maven) and flock'
    java_for_kafka || die 'Kafka needs Java 17 or later in PATH; install for example default-jre-headless'
    umask 022
    mkdir -p "$ROOT/.cache"
    (
        flock 9
        # Somebody else may have made it while this waited.
        if [[ $(cat -- "$folder/recipe" 2>/dev/null) != "$recipe" ]]; then
            rm -rf -- "$ROOT/.cache/".kafka.new.*
            new=$(mktemp -d "$ROOT/.cache/.kafka.new.XXXXXX")
            trap 'rm -rf -- "$new"' EXIT
            trap 'exit 130' INT
            trap 'exit 143' TERM
            chmod 755 "$new"
            say 'fetching Apache Kafka (once; about 60 MB)'
            mvn --batch-mode --quiet --file "$lib/kafka/pom.xml" -Dmaven.repo.local="$new/repository" \
                dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$new/jars" \
                </dev/null >&2 || die 'Maven could not fetch Apache Kafka'
            rm -rf -- "$new/repository"
            check_kafka "$new/jars"
            cat "$lib/kafka/"* | sha256sum >"$new/recipe"
            rm -rf -- "$folder"
            mv -T -- "$new" "$folder" || die "cannot write $folder"
            say "ready in $(seconds_since "$began"): Apache $(kafka_version), in ${folder#"$ROOT/"}"
        fi
    ) 9>"$ROOT/.cache/.kafka.lock"
}

# check_kafka FOLDER: exactly the jars of the list, each with its sum.
check_kafka() {
    local list=$ROOT/scripts/lib/kafka/jars.sha512
    if [[ ! -e $list ]]; then
        (cd "$1" && LC_ALL=C sha512sum -- *.jar) >"$list"
        say "wrote ${list#"$ROOT/"}; compare it with what was there before"
        return 0
    fi
    (cd "$1" && sha512sum --check --strict --quiet "$list") >&2 || die "a jar of Kafka is not the one it was"
    (cd "$1" && LC_ALL=C diff <(printf '%s\n' *.jar) <(sed 's/^[^ ]* *//' "$list")) >&2 ||
        die 'there are jars that are not in scripts/lib/kafka/jars.sha512'
}

kafka_version() {
    sed -n '/<artifactId>kafka_/,/<version>/ s/.*<version>\(.*\)<.*/Kafka \1/p' "$ROOT/scripts/lib/kafka/pom.xml"
}
