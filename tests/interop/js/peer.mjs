// A js-libp2p node for the tests: commands come as JSON lines on stdin, answers leave on stdout.
//
// A command is {"id": 1, "do": "dial", …}; its answer {"id": 1, "result": …} or
// {"id": 1, "error": {"name": …, "message": …}}. The first line out is {"event": "ready", …}.
//
// It serves what docs/interop.md asks of a peer, so that the checks of p2pnode.testing.peer can be
// run on it. Node.js 20 needs the option --experimental-websocket.

import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'

// libp2p asks for Node.js 22; on 20 this is missing.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { createLibp2p } = await import('libp2p')
const { noise } = await import('@libp2p/noise')
const { yamux } = await import('@libp2p/yamux')
const { identify, identifyPush } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { tcp } = await import('@libp2p/tcp')
const { webSockets } = await import('@libp2p/websockets')
// A native module, which not every machine has.
const { quic } = await import('@chainsafe/libp2p-quic').catch(() => ({}))
const { gossipsub } = await import('@libp2p/gossipsub')
const { kadDHT, passthroughMapper } = await import('@libp2p/kad-dht')
const { publicKeyToProtobuf } = await import('@libp2p/crypto/keys')
const { multiaddr } = await import('@multiformats/multiaddr')
const { peerIdFromString } = await import('@libp2p/peer-id')

const ECHO = '/echo/1.0.0'
const HALF = '/p2pnode-test/answer-at-the-end/1.0.0'
const PERF = '/perf/1.0.0'
const TOPIC = 'interop'

const shunned = new Set()
const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0', '/ip4/127.0.0.1/tcp/0/ws', ...(quic ? ['/ip4/127.0.0.1/udp/0/quic-v1'] : [])] },
  transports: [tcp(), webSockets(), ...(quic ? [quic()] : [])],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    // The defaults leave out peers on loopback addresses.
    dht: kadDHT({ protocol: '/ipfs/kad/1.0.0', peerInfoMapper: passthroughMapper, clientMode: false }),
    // All peers are at one address here, which the defaults count as an attack.
    pubsub: gossipsub({ scoreParams: { IPColocationFactorWeight: 0 } })
  },
  connectionGater: {
    denyDialMultiaddr: () => false, // loopback is where all of us are
    denyDialPeer: peer => shunned.has(peer.toString()),
    denyInboundEncryptedConnection: peer => shunned.has(peer.toString())
  },
  // It drops a connection on which its ping and one of the DHT's or of a test's are one too many.
  connectionMonitor: { enabled: false },
  connectionManager: { inboundConnectionThreshold: 1000 } // by default five a second from one address
})

const write = line => process.stdout.write(JSON.stringify(line) + '\n')
const bytes = data => data.subarray()
const hex = data => data == null ? null : Buffer.from(bytes(data)).toString('hex')

const send = async (stream, data) => {
  const piece = 1 << 16
  for (let start = 0; start < data.byteLength; start += piece) {
    if (!stream.send(data.subarray(start, start + piece))) await stream.onDrain()
  }
}

// Iterating over a stream waits forever when its end has arrived before the iteration began, so
// listen to its events instead.
const readEach = (stream, take) => new Promise((resolve, reject) => {
  stream.addEventListener('message', ({ data }) => take(bytes(data)))
  stream.addEventListener('end', resolve)
  stream.addEventListener('close', ({ error }) => error == null ? resolve() : reject(error))
  if (stream.readableEnded) resolve()
})

const readAll = async stream => {
  const hash = createHash('sha256')
  let size = 0
  await readEach(stream, data => {
    hash.update(data)
    size += data.byteLength
  })
  return { size, sha256: hash.digest('hex') }
}

const options = { maxInboundStreams: 1000, maxOutboundStreams: 1000 }

await node.handle(ECHO, async stream => {
  await readEach(stream, data => stream.send(data))
  if (stream.writableNeedsDrain) await stream.onDrain()
  await stream.close()
}, options)

await node.handle(HALF, async stream => {
  const { size, sha256 } = await readAll(stream)
  await send(stream, Buffer.from(JSON.stringify({ size, sha256 })))
  await stream.close()
}, options)

// No release of js-libp2p's own perf goes with this libp2p.
await node.handle(PERF, async stream => {
  let request = Buffer.alloc(0)
  await readEach(stream, data => {
    if (request.length < 8) request = Buffer.concat([request, data.subarray(0, 8 - request.length)])
  })
  await send(stream, new Uint8Array(Number(request.readBigUInt64BE())))
  await stream.close()
}, options)

const heard = []
const listening = new Set()
const text = data => Buffer.from(data).toString()
node.services.pubsub.subscribe(TOPIC)
node.services.pubsub.addEventListener('message', ({ detail }) => {
  heard.push({ from: detail.from.toString(), text: text(detail.data) })
  for (const each of listening) each()
  const [verb, rest] = text(detail.data).split(/:(.*)/s)
  if (verb === 'ping') node.services.pubsub.publish(TOPIC, Buffer.from(`pong:${rest}`)).catch(() => {})
})

const identified = new Map()
const waiting = new Map()
node.addEventListener('peer:identify', ({ detail }) => {
  const peer = detail.peerId.toString()
  identified.set(peer, {
    protocolVersion: detail.protocolVersion ?? null,
    agentVersion: detail.agentVersion ?? null,
    observedAddr: detail.observedAddr?.toString() ?? null,
    listenAddrs: detail.listenAddrs.map(String),
    protocols: detail.protocols,
    record: detail.signedPeerRecord == null
      ? null
      : {
          seq: detail.signedPeerRecord.seq.toString(),
          addresses: detail.signedPeerRecord.addresses.map(String)
        }
  })
  waiting.get(peer)?.resolve()
})

const commands = {
  async dial ({ address }) {
    for (;;) {
      try {
        const connection = await node.dial(multiaddr(address), { force: true }) // not one about to end
        return { peer: connection.remotePeer.toString(), muxer: connection.multiplexer, encryption: connection.encryption }
      } catch (error) {
        if (error.name !== 'ConnectionClosedError') throw error
        await setTimeout(20) // the DHT had dialled, too, and the peer has just closed what this joined
      }
    }
  },

  async identified ({ peer }) {
    if (!identified.has(peer)) {
      waiting.set(peer, Promise.withResolvers())
      await waiting.get(peer).promise
    }
    return identified.get(peer)
  },

  async known ({ peer }) {
    const data = await node.peerStore.get(peerIdFromString(peer))
    return {
      protocols: data.protocols,
      addresses: data.addresses.map(each => each.multiaddr.toString()),
      envelope: hex(data.peerRecordEnvelope)
    }
  },

  async echo ({ peer, size, protocol = ECHO }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), protocol, options)
    const data = randomBytes(size)
    const received = readAll(stream)
    await send(stream, data)
    await stream.close()
    const expected = createHash('sha256').update(data).digest('hex')
    const answer = await received
    return { size: answer.size, whole: answer.sha256 === expected }
  },

  async echoes ({ peer, count, size }) {
    const all = Array.from({ length: count }, async () => commands.echo({ peer, size }))
    return await Promise.all(all)
  },

  async half ({ peer, size }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), HALF, options)
    const data = randomBytes(size)
    let answer = ''
    const received = readEach(stream, piece => { answer += Buffer.from(piece).toString() })
    await send(stream, data)
    await stream.close()
    await received
    const { sha256 } = JSON.parse(answer)
    return { whole: sha256 === createHash('sha256').update(data).digest('hex') }
  },

  async perf ({ peer, upload, download }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), PERF, options)
    const request = Buffer.alloc(8)
    request.writeBigUInt64BE(BigInt(download))
    const answer = readAll(stream)
    await send(stream, request)
    await send(stream, new Uint8Array(upload))
    await stream.close()
    return (await answer).size
  },

  async subscribers () {
    return node.services.pubsub.getSubscribers(TOPIC).map(String)
  },

  async publish ({ texts }) {
    for (const each of texts) await node.services.pubsub.publish(TOPIC, Buffer.from(each))
  },

  // Wait until each of the texts has come; says whom each of them is from.
  async hear ({ texts }) {
    const find = each => heard.find(({ text }) => text === each)
    await new Promise(resolve => {
      const check = () => {
        if (!texts.every(find)) return
        listening.delete(check)
        resolve()
      }
      listening.add(check)
      check()
    })
    return texts.map(each => find(each).from)
  },

  // Send bytes on a stream of their own; returns what comes back.
  async raw ({ peer, protocol, data }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), protocol)
    const pieces = []
    const answer = readEach(stream, piece => pieces.push(Buffer.from(piece)))
    await send(stream, Buffer.from(data, 'hex'))
    await stream.close()
    await answer
    return hex(Buffer.concat(pieces))
  },

  async ping ({ peer }) {
    for (;;) {
      try {
        return await node.services.ping.ping(peerIdFromString(peer))
      } catch (error) {
        if (error.name !== 'TooManyOutboundProtocolStreamsError') throw error
        await setTimeout(20) // the DHT pings its peers, too, and one ping may be under way
      }
    }
  },

  async findPeer ({ peer }) {
    const found = await node.peerRouting.findPeer(peerIdFromString(peer), { useCache: false })
    return found.multiaddrs.map(String)
  },

  async putOwnKey () {
    const key = Buffer.concat([Buffer.from('/pk/'), node.peerId.toMultihash().bytes])
    const stored = []
    for await (const event of node.services.dht.put(key, publicKeyToProtobuf(node.peerId.publicKey))) {
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE') stored.push(event.from.toString())
    }
    return stored
  },

  async getKey ({ peer }) {
    const key = Buffer.concat([Buffer.from('/pk/'), peerIdFromString(peer).toMultihash().bytes])
    return hex(await node.contentRouting.get(key))
  },

  async provide () {
    await node.contentRouting.provide(node.peerId.toCID())
  },

  async findProviders ({ peer }) {
    const found = []
    for await (const provider of node.contentRouting.findProviders(peerIdFromString(peer).toCID())) {
      found.push(provider.id.toString())
    }
    return found
  },

  async handle ({ protocol }) {
    await node.handle(protocol, async stream => { await stream.close() })
  },

  async unhandle ({ protocol }) {
    await node.unhandle(protocol)
  },

  // Have nothing to do with a peer from now on, which the DHT would connect to by itself.
  async shun ({ peer }) {
    shunned.add(peer)
    await node.hangUp(peerIdFromString(peer))
  },

  async hangUp ({ peer }) {
    await node.hangUp(peerIdFromString(peer))
  },

  async connections ({ peer }) {
    return node.getConnections(peerIdFromString(peer)).length
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
input.on('close', () => process.exit(0)) // the test that started us is gone
