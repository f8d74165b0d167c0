// swift-tools-version: 6.0
import PackageDescription

// What `scripts/ios.sh` lays out; `scripts/swift.sh` names the one for Linux.
let ampoule = Context.environment["AMPOULE_PACKAGE"] ?? "../../target/ios/ampoule"

let package = Package(
    name: "NoteMarking",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "NoteMarking", targets: ["NoteMarking"])],
    dependencies: [.package(name: "ampoule", path: ampoule)],
    targets: [
        .target(name: "NoteMarking", dependencies: [.product(name: "Ampoule", package: "ampoule")]),
        .testTarget(name: "NoteMarkingTests", dependencies: ["NoteMarking"]),
    ],
    swiftLanguageModes: [.v6]
)
