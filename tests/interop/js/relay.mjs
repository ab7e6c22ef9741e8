// A js-libp2p node that uses circuit relays; commands as in peer.mjs. Arguments: `relay` makes it
// a relay, `punch` has it speak DCUtR, and an address is where it listens.

import { createInterface } from 'node:readline'

Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { createLibp2p } = await import('libp2p')
const { noise } = await import('@libp2p/noise')
const { yamux } = await import('@libp2p/yamux')
const { identify, identifyPush } = await import('@libp2p/identify')
const { tcp } = await import('@libp2p/tcp')
const { circuitRelayServer, circuitRelayTransport } = await import('@libp2p/circuit-relay-v2')
const { dcutr } = await import('@libp2p/dcutr')
const { multiaddr } = await import('@multiformats/multiaddr')
const { peerIdFromString } = await import('@libp2p/peer-id')

const ECHO = '/echo/1.0.0'
const isRelay = process.argv.includes('relay')
const punches = process.argv.includes('punch')
const listen = process.argv.slice(2).filter(each => each.startsWith('/'))

const node = await createLibp2p({
  addresses: {
    listen: listen.length > 0 ? listen : ['/ip4/127.0.0.1/tcp/0'],
    announce: listen // else it tells of no public address before others have dialled it there
  },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify({ runOnLimitedConnection: true }),
    identifyPush: identifyPush({ runOnLimitedConnection: true }),
    ...(isRelay ? { relay: circuitRelayServer() } : {}),
    ...(punches ? { dcutr: dcutr() } : {})
  },
  connectionGater: { denyDialMultiaddr: () => false },
  connectionMonitor: { enabled: false }
})

const readAll = stream => new Promise((resolve, reject) => {
  const pieces = []
  stream.addEventListener('message', ({ data }) => pieces.push(Buffer.from(data.subarray())))
  stream.addEventListener('end', () => resolve(Buffer.concat(pieces)))
  stream.addEventListener('close', ({ error }) => {
    if (error == null) resolve(Buffer.concat(pieces))
    else reject(error)
  })
})

await node.handle(ECHO, async stream => {
  stream.addEventListener('message', ({ data }) => stream.send(data))
  stream.addEventListener('end', () => { stream.close().catch(() => {}) })
}, { runOnLimitedConnection: true })

const write = line => process.stdout.write(JSON.stringify(line) + '\n')

const commands = {
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return {
      peer: connection.remotePeer.toString(),
      address: connection.remoteAddr.toString(),
      limits: connection.limits == null
        ? null
        : { bytes: Number(connection.limits.bytes ?? 0), seconds: connection.limits.seconds ?? 0 }
    }
  },

  // Ask a relay to take connections for this node; returns where others reach it now.
  async reserve ({ address }) {
    await node.components.transportManager.listen([multiaddr(`${address}/p2p-circuit`)])
    return node.getMultiaddrs().map(String).filter(each => each.includes('/p2p-circuit'))
  },

  // Send text to an echo over whatever connection there is; returns what comes back.
  async echo ({ peer, text }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), ECHO, { runOnLimitedConnection: true })
    const answer = readAll(stream)
    stream.send(Buffer.from(text))
    await stream.close()
    return (await answer).toString()
  },

  // The far ends of the connections to a peer.
  async connections ({ peer }) {
    return node.getConnections(peerIdFromString(peer)).map(each => each.remoteAddr.toString())
  },

  // How many peers hold a reservation here.
  async reservations () {
    return node.services.relay.reservations.size
  }
}

write({
  event: 'ready',
  peer: node.peerId.toString(),
  addresses: node.getMultiaddrs().map(each => each.decapsulateCode(421).toString()),
  protocols: node.getProtocols()
})

const input = createInterface({ input: process.stdin })
input.on('line', line => {
  const command = JSON.parse(line)
  commands[command.do](command).then(
    result => write({ id: command.id, result: result ?? null }),
    error => write({ id: command.id, error: { name: error.name, message: error.message } })
  )
})
input.on('close', () => process.exit(0))
