# Apache Kafka for tests/services, which reads this file: one node; one with passwords, certificates and rights; a cluster of three.
#
# A folder holds `pid`, `port`, `log`, `log.this` (of the present run), `server.properties` and `data` of each node.

KAFKA_VERSION=4.1.1
LOG4J_VERSION=2.24.3
LIBS="$SERVICES/kafka-libs"

install_kafka() {
    [ -e "$LIBS/complete-$KAFKA_VERSION" ] && command -v java >/dev/null && return
    install_java

    (
        flock 9
        [ -e "$LIBS/complete-$KAFKA_VERSION" ] && exit
        say "fetching Apache Kafka $KAFKA_VERSION with mvn"
        rm -rf "$LIBS"
        mkdir -p "$LIBS"
        cat >"$LIBS/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tidegate.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$LOG4J_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>$LOG4J_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-1.2-api</artifactId><version>$LOG4J_VERSION</version></dependency>
  </dependencies>
</project>
POM
        cat >"$LIBS/log4j2.properties" <<'LOG'
status = warn
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
LOG
        mvn -q -B -Dstyle.color=never -f "$LIBS/pom.xml" -Dmaven.repo.local="$SERVICES/m2" dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$LIBS" >&2 ||
            die "mvn could not fetch Apache Kafka; its messages are above"
        rm -rf "$SERVICES/m2"
        touch "$LIBS/complete-$KAFKA_VERSION"
    ) 9>"$SERVICES/kafka-libs.lock"
}

install_apicurio() {
    local libs="$SERVICES/apicurio-libs"
    [ -e "$libs/complete-$APICURIO_VERSION" ] && command -v java >/dev/null && return
    install_java
    (
        flock 9
        [ -e "$libs/complete-$APICURIO_VERSION" ] && exit
        say "fetching Apicurio Registry $APICURIO_VERSION with mvn (104 MiB)"
        rm -rf "$libs"
        mkdir -p "$libs"
        # Without a project of its own, mvn would look for one in the folder it is called from.
        (
            cd "$libs"
            mvn -q -B -Dstyle.color=never -Dmaven.repo.local="$libs/m2" dependency:copy \
                "-Dartifact=io.apicurio:apicurio-registry-app:$APICURIO_VERSION:tar.gz:all" "-DoutputDirectory=$libs" >&2
        ) || die "mvn could not fetch Apicurio Registry; its messages are above"
        rm -rf "$libs/m2"
        tar -xzf "$libs/apicurio-registry-app-$APICURIO_VERSION-all.tar.gz" -C "$libs" ||
            die "the archive of Apicurio Registry cannot be unpacked"
        rm "$libs/apicurio-registry-app-$APICURIO_VERSION-all.tar.gz"
        touch "$libs/complete-$APICURIO_VERSION"
    ) 9>"$SERVICES/apicurio-libs.lock"
}

# ---- Apache Kafka ------------------------------------------------------------------------------------------------

kafka_java() {
    local heap=$1
    shift
    java "-Xmx$heap" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto \
        "-Dlog4j2.configurationFile=$LIBS/log4j2.properties" -cp "$LIBS/*" "$@"
}

# What every node has in common.
kafka_settings() {
    cat <<CONF
process.roles=broker,controller
controller.listener.names=CONTROLLER
num.network.threads=2
num.io.threads=2
background.threads=2
num.recovery.threads.per.data.dir=1
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
CONF
}

# What one node alone has to have besides.
kafka_settings_alone() {
    kafka_settings
    cat <<CONF
node.id=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
CONF
}

# kafka_format DIR ARGUMENT...: makes the data folder.
kafka_format() {
    local dir=$1
    shift
    kafka_java 64m kafka.tools.StorageTool format -c "$dir/server.properties" "$@" >>"$dir/log" 2>&1 ||
        die "Kafka could not format its data folder; its log is $dir/log"
}

kafka_id() { kafka_java 64m kafka.tools.StorageTool random-uuid; }

# kafka_launch DIR HEAP: starts the process and does not wait.
kafka_launch() {
    local dir=$1
    # `log.this` holds the present run, so that the line that says "started" cannot be an old one.
    : >"$dir/log.this"
    cd "$dir"
    setsid java "-Xmx$2" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -XX:-UsePerfData \
        "-Dlog4j2.configurationFile=$LIBS/log4j2.properties" -cp "$LIBS/*" \
        kafka.Kafka "$dir/server.properties" >"$dir/log.this" 2>&1 </dev/null 7>&- 8>&- &
    echo $! >"$dir/pid"
    cd "$ROOT"
}

# kafka_started DIR PORT: waits until it accepts connections; fails when it ends first.
kafka_started() { launched "$1" && await "$1" Kafka 120 kafka_answers "$1" "$2"; }

kafka_answers() { grep -q 'Kafka Server started' "$1/log.this" && (exec 3<>"/dev/tcp/127.0.0.1/$2"); }

# kafka_failed DIR...: none of them started. Returns if that may be tried again with new data: somebody may have taken a port
# meanwhile; a new instance may choose again, an old one must not move.
kafka_failed() {
    local dir may_move=
    for dir in "$@"; do
        stop_kafka "$dir"
        cat "$dir/log.this" >>"$dir/log"
        ! grep -q 'Address already in use' "$dir/log.this" || may_move=1
        [ ! -e "$dir/started" ] || may_move=
    done
    if [ -z "$may_move" ]; then
        tail -20 "$1/log.this" >&2
        die "Kafka ended while starting; its log is $1/log.this"
    fi
    for dir in "$@"; do rm -rf "$dir/data"; done
}

# start_kafka_alone DIR: one node, made by kafka_make (or kafka_secure_make) DIR when it is new.
start_kafka_alone() {
    local dir=$1 make=$2 attempt
    running "$dir" && return
    install_kafka
    mkdir -p "$dir"
    for attempt in 1 2 3; do
        if [ ! -e "$dir/data/meta.properties" ]; then
            rm -rf "$dir/data"
            "$make" "$dir"
        fi
        say "starting Kafka on 127.0.0.1:$(cat "$dir/port")"
        kafka_launch "$dir" 400m
        if kafka_started "$dir" "$(cat "$dir/port")"; then
            touch "$dir/started"
            return
        fi
        kafka_failed "$dir"
    done
    die "Kafka found no free port in $attempt attempts; its log is $dir/log"
}

stop_kafka() { end "$1" Kafka 20 TERM; }

# ---- Apache Kafka: one node, plaintext -----------------------------------------------------------------------------

kafka_make() {
    local dir=$1 port proxied proxy controller
    port=$(free_port) proxied=$(free_port) proxy=$(free_port) controller=$(free_port)
    echo "$port" >"$dir/port"
    echo "$proxied" >"$dir/port-proxied"
    echo "$proxy" >"$dir/port-proxy"
    {
        kafka_settings_alone
        cat <<CONF
listeners=PLAINTEXT://127.0.0.1:$port,PROXIED://127.0.0.1:$proxied,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port,PROXIED://127.0.0.1:$proxy
controller.quorum.bootstrap.servers=127.0.0.1:$controller
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/data
CONF
    } >"$dir/server.properties"
    kafka_format "$dir" --standalone -t "$(kafka_id 2>>"$dir/log")"
}

start_kafka() { start_kafka_alone "$SERVICES/$INSTANCE/kafka" kafka_make && env_kafka; }

env_kafka() {
    local dir="$SERVICES/$INSTANCE/kafka"
    running "$dir" || return 0
    echo "export TIDEGATE_TEST_KAFKA=127.0.0.1:$(cat "$dir/port")"
    # An instance that an older version of this script made does not have them.
    [ -e "$dir/port-proxy" ] || return 0
    echo "export TIDEGATE_TEST_KAFKA_PROXIED=127.0.0.1:$(cat "$dir/port-proxied")"
    echo "export TIDEGATE_TEST_KAFKA_PROXY=127.0.0.1:$(cat "$dir/port-proxy")"
}

# ---- Apache Kafka: passwords, certificates, rights -----------------------------------------------------------------

install_kafka_secure() {
    install_kafka
    command -v openssl >/dev/null || apt_install openssl
}

# authority DIR NAME: NAME.pem and NAME.key, valid for ten years.
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" \
        -keyout "$1/$2.key" -out "$1/$2.pem" 2>>"$1/log" || die "openssl could not make an authority; its log is $1/log"
}

# certificate DIR AUTHORITY NAME: NAME.pem and NAME.key of that authority, for this machine and for the client NAME.
certificate() {
    local dir=$1 authority=$2 name=$3
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$dir/$name.key" -out "$dir/$name.csr" 2>>"$dir/log" &&
        openssl x509 -req -in "$dir/$name.csr" -CA "$dir/$authority.pem" -CAkey "$dir/$authority.key" -CAcreateserial -days 3650 \
            -extfile <(echo 'subjectAltName=DNS:localhost,IP:127.0.0.1') -out "$dir/$name.pem" 2>>"$dir/log" ||
        die "openssl could not make a certificate; its log is $dir/log"
}

kafka_secure_certificates() {
    local dir=$1
    mkdir -p "$dir"
    : >"$dir/log"
    authority "$dir" ca
    authority "$dir" stranger-ca
    certificate "$dir" ca broker
    certificate "$dir" ca writer
    certificate "$dir" stranger-ca stranger
    cat "$dir/broker.key" "$dir/broker.pem" >"$dir/broker-store.pem"
    echo writer-pass >"$dir/writer.pass"
    openssl pkcs8 -topk8 -in "$dir/writer.key" -passout "file:$dir/writer.pass" -out "$dir/writer.locked" 2>>"$dir/log" &&
        mv "$dir/writer.locked" "$dir/writer.key" || die "openssl could not lock a key; its log is $dir/log"
}

kafka_secure_make() {
    local dir=$1 sasl tls mutual controller listener user mechanism files=$1/files scram=()
    local plain='org.apache.kafka.common.security.plain.PlainLoginModule required'
    kafka_secure_certificates "$files"
    sasl=$(free_port) tls=$(free_port) mutual=$(free_port) controller=$(free_port)
    echo "$sasl" >"$dir/port"
    echo "$tls" >"$dir/port-tls"
    echo "$mutual" >"$dir/port-mutual"
    {
        kafka_settings_alone
        cat <<CONF
listeners=SASL://127.0.0.1:$sasl,TLS://127.0.0.1:$tls,MUTUAL://127.0.0.1:$mutual,CONTROLLER://127.0.0.1:$controller
advertised.listeners=SASL://127.0.0.1:$sasl,TLS://127.0.0.1:$tls,MUTUAL://127.0.0.1:$mutual
controller.quorum.bootstrap.servers=127.0.0.1:$controller
listener.security.protocol.map=SASL:SASL_PLAINTEXT,TLS:SASL_SSL,MUTUAL:SSL,CONTROLLER:SASL_PLAINTEXT
inter.broker.listener.name=SASL
log.dirs=$dir/data
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
listener.name.controller.sasl.enabled.mechanisms=PLAIN
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin
ssl.keystore.type=PEM
ssl.keystore.location=$files/broker-store.pem
ssl.truststore.type=PEM
ssl.truststore.location=$files/ca.pem
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.principal.mapping.rules=RULE:^CN=([^,]*).*\$/\$1/
CONF
        for listener in sasl tls controller; do
            echo "listener.name.$listener.plain.sasl.jaas.config=$plain username=admin password=admin-secret" \
                "user_admin=admin-secret user_writer=writer-secret user_nobody=nobody-secret;"
            for mechanism in scram-sha-256 scram-sha-512; do
                [ "$listener" = controller ] || echo "listener.name.$listener.$mechanism.sasl.jaas.config=" \
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            done
        done
    } >"$dir/server.properties"
    cat >"$dir/admin.properties" <<CONF
security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config=$plain username=admin password=admin-secret;
CONF
    for user in admin writer nobody; do
        for mechanism in SCRAM-SHA-256 SCRAM-SHA-512; do
            scram+=(--add-scram "$mechanism=[name=$user,password=$user-secret]")
        done
    done
    kafka_format "$dir" --standalone -t "$(kafka_id 2>>"$dir/log")" "${scram[@]}"
}

start_kafka_secure() {
    local dir="$SERVICES/$INSTANCE/kafka-secure"
    install_kafka_secure
    start_kafka_alone "$dir" kafka_secure_make
    # Rights are kept in the cluster itself, so they can only be given when it runs.
    if [ ! -e "$dir/rights" ]; then
        kafka_tool org.apache.kafka.tools.AclCommand --add --allow-principal User:writer --topic allowed- \
            --resource-pattern-type prefixed --operation Write --operation Create --operation Describe >>"$dir/log" 2>&1 ||
            die "Kafka did not take the rights of its users; its log is $dir/log"
        touch "$dir/rights"
    fi
    env_kafka_secure
}

env_kafka_secure() {
    local dir="$SERVICES/$INSTANCE/kafka-secure"
    running "$dir" || return 0
    echo "export TIDEGATE_TEST_KAFKA_SECURE=127.0.0.1:$(cat "$dir/port")"
    echo "export TIDEGATE_TEST_KAFKA_SECURE_TLS=127.0.0.1:$(cat "$dir/port-tls")"
    echo "export TIDEGATE_TEST_KAFKA_SECURE_MUTUAL=127.0.0.1:$(cat "$dir/port-mutual")"
    echo "export TIDEGATE_TEST_KAFKA_SECURE_FILES=$dir/files"
}

stop_kafka_secure() { stop_kafka "$1"; }

# kafka_tool CLASS ARGUMENT...: as the administrator of kafka-secure, or of kafka-cluster where that runs alone.
kafka_tool() {
    local dir="$SERVICES/$INSTANCE/kafka-secure" login=()
    if running "$dir"; then
        login=(--command-config "$dir/admin.properties")
    else
        dir="$SERVICES/$INSTANCE/kafka-cluster/1"
        running "$dir" || die "neither runs: tests/services start kafka-secure, or kafka-cluster"
    fi
    timeout 60 java -Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto \
        "-Dlog4j2.configurationFile=$LIBS/log4j2.properties" -cp "$LIBS/*" "$1" \
        --bootstrap-server "127.0.0.1:$(cat "$dir/port")" "${login[@]}" "${@:2}"
}

# ---- Apache Kafka: three nodes -------------------------------------------------------------------------------------

install_kafka_cluster() { install_kafka; }

kafka_cluster_make() {
    local cluster=$1 id node dir voters= port
    local -a controllers
    for node in 1 2 3; do
        controllers[node]=$(free_port)
        voters+=${voters:+,}$node@127.0.0.1:${controllers[node]}
    done
    id=$(kafka_id 2>>"$cluster/log")
    for node in 1 2 3; do
        dir=$cluster/$node
        mkdir -p "$dir"
        port=$(free_port)
        echo "$port" >"$dir/port"
        {
            kafka_settings
            cat <<CONF
node.id=$node
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:${controllers[node]}
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.quorum.voters=$voters
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/data
default.replication.factor=3
min.insync.replicas=2
broker.session.timeout.ms=6000
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
CONF
        } >"$dir/server.properties"
        kafka_format "$dir" -t "$id"
    done
}

start_kafka_cluster() {
    local cluster="$SERVICES/$INSTANCE/kafka-cluster" attempt node dir ok
    local -a fresh
    install_kafka
    mkdir -p "$cluster"
    for attempt in 1 2 3; do
        [ -e "$cluster/3/data/meta.properties" ] || kafka_cluster_make "$cluster"
        fresh=() ok=1
        for node in 1 2 3; do
            running "$cluster/$node" || fresh+=("$cluster/$node")
        done
        for dir in "${fresh[@]}"; do
            say "starting Kafka on 127.0.0.1:$(cat "$dir/port")"
            kafka_launch "$dir" 256m
        done
        for dir in "${fresh[@]}"; do
            kafka_started "$dir" "$(cat "$dir/port")" || ok=
        done
        if [ -n "$ok" ]; then
            for dir in "${fresh[@]}"; do touch "$dir/started"; done
            env_kafka_cluster
            return
        fi
        kafka_failed "${fresh[@]}"
    done
    die "Kafka found no free ports in $attempt attempts; its logs are in $cluster"
}

env_kafka_cluster() {
    local cluster="$SERVICES/$INSTANCE/kafka-cluster" node servers=
    for node in 1 2 3; do
        running "$cluster/$node" || return 0
        servers+=${servers:+,}127.0.0.1:$(cat "$cluster/$node/port")
    done
    echo "export TIDEGATE_TEST_KAFKA_CLUSTER=$servers"
}

# All are asked at once. The last one has no quorum any more to leave in an orderly way, and is not waited for.
stop_kafka_cluster() {
    local node
    local -a ending=()
    for node in 1 2 3; do
        end "$1/$node" Kafka 8 TERM &
        ending+=($!)
    done
    wait "${ending[@]}"
}
